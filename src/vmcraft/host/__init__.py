"""The machine that we run on: mounts, namespaces, nspawn, processes."""
