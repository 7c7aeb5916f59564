"""What runs on each worker: the loop, its steps, and the watch over them."""
