"""Language models: loading them and turning their linears into BitLinears."""
