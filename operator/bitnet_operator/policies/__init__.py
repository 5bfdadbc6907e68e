"""The rules that decide follows: one file a rule, each a pure function with a table of tests."""
