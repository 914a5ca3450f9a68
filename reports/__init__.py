"""What we learned: how prediction and measurement compare. Never imports torch."""
