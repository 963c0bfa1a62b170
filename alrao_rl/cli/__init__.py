"""What all commands share: lines of output, types of arguments, Ctrl-C."""
