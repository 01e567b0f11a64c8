"""`duet doctor`: what would end a run later is found before anything is paid for."""
