"""From ego clips to encoder artifacts."""
