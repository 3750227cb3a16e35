"""Programs written against other libraries; `test_other_clients` runs each as its own process.

python -m tests.e2e.clients.<name> BASE_URL IMAGE_URL IMAGE_URL
"""
