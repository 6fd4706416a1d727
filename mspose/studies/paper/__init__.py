"""The paper: every table and figure that finished runs allow, and an index of what is missing."""
