"""`python -m odm_deploy`: the same as `odm-deploy`, for environments whose scripts are not on the path."""

from odm_deploy.cli import main

if __name__ == "__main__":
    main()
