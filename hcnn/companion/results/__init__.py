"""What the run folders say: runs, tables, the ledger of claims, and their verification."""
