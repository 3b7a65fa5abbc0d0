"""The machine: devices, random number generators, memory, signals."""
