"""Pipeline schedules as lists of steps, with their times, what they hold, and how layers are cut into stages."""
