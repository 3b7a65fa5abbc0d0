"""The machine: devices, random generators, memory, signals."""
