"""What is started or scheduled: order and conditions only."""
