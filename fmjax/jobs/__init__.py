"""The work behind the command line: one subpackage per command or group of commands."""
