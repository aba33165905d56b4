"""What each stage does: `run(context)` keeps rows as it finds them and stops by itself when its time is over."""
