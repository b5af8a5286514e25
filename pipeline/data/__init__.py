"""Read, write, split and catalogue contract rows."""
