"""Contract type for import-linter: private modules stay below the folder that holds them."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

from scripts.check_private import may_import


class PrivateModulesContract(Contract):
    """No module imports a ``_private`` module or package from outside the folder that holds it."""

    type_name = "private_modules"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Return every direct import that crosses a border."""
        found = sorted(
            (importer, imported)
            for importer in graph.modules
            for imported in graph.find_modules_directly_imported_by(importer)
            if not graph.is_module_squashed(imported) and not may_import(importer, imported)
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the imports."""
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} -> {imported}")
