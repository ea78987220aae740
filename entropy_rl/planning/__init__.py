"""Planning: compile a run without its devices and weights; estimate memory and time."""
