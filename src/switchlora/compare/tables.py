def report_data(plan, records): return {}
