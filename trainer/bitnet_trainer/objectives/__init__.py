"""What training minimises: one file an objective, and the manager that weighs them."""
