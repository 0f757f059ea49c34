"""`simulate` has the real driver and simulated engines, `against_processes` compares Ray with processes."""
