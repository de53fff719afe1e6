"""Where the work is done: what comes next, in which process, and how."""
