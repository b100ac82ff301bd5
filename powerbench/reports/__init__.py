"""From a run file to tables, figures and the page. Imports no torch."""
