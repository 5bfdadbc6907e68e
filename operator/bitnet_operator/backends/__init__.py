"""The places where a run can train. Only these files know what kind of child that takes."""
