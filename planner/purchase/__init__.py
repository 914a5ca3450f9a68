"""What somebody needs who buys or rents devices: counts and kinds side by side, money, days, energy and storage."""
