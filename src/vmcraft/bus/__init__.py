"""D-Bus: one transport for hosts and guests, and one module of bindings for each bus name."""
