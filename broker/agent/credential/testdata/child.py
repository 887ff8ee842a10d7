# What a server in Python finds: its account, a token, and the ID token that it may have.
import json
import os

import google.auth
import google.auth.transport.requests
from google.auth import compute_engine

request = google.auth.transport.requests.Request()
credentials, project = google.auth.default(scopes=os.environ["TEST_SCOPES"].split(","))
credentials.refresh(request)
out = {"project": project, "token": credentials.token, "email": credentials.service_account_email}


def identity(audience):
    c = compute_engine.IDTokenCredentials(request, audience, use_metadata_identity_endpoint=True)
    c.refresh(request)
    return c.token


out["identity"] = identity(os.environ["TEST_AUDIENCE"])
try:
    identity("https://other.example")
except Exception as e:
    out["refused"] = str(e)
print(json.dumps(out))
