"""What every long run shares: a journal that resumes, bootstrap intervals, tables and figures."""
