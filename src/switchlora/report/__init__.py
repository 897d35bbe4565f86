"""Pictures and pages from results: plain data in, a file out. Nothing here trains or decides anything."""
