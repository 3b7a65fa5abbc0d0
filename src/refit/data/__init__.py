"""From files to frozen tensors: `sources` reads, `schema` types, `splits` divides, `preprocessing` fits, `dataset` does it all."""
