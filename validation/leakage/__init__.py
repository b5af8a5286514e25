"""Find test rows that training has seen, and words that give a label away."""
