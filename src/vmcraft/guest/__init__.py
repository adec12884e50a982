"""A booted guest's life: is it bootable, boot it, reach its buses, run its programs, end it."""
