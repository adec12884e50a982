"""A systemd host in a container over the machine's own root: what scripts/lab does, one subject in each module.

From the top: lab (its life), run and keeper (one command in it), nspawn, tree and places (what it boots and shows),
record (what a start leaves for the commands after it), leftovers, cgroups and loops (what must not stay behind),
layout (its names), terminal, channel and system. Standard library only. Everything is imported at the top of its
module: after setns the files of this Python may be gone.
"""
