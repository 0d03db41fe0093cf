"""The schedules that come with ringtmp, a file for each family."""
