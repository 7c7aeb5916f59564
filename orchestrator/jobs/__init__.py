"""Runs as Ray jobs: packed, submitted, followed, stopped, and what is different inside one."""
