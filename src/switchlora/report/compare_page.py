def require_packages(): pass
def write_page(data, output): return output
