"""Tables, figures and the HTML page, from the files of runs alone."""
