"""Links from a task to where a person would look."""
