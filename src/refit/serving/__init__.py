"""Uses of saved models: score rows and files, export, start training from their weights."""
