"""One file a method: its layer, its parameter count, its fold into a plain low-rank pair for one task."""
