from contract.poison import poisoned_empty as poisoned_empty
