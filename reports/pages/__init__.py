"""Pages of the report: their figures and the HTML around them."""
