from mielin_cells.cli import main

main()
