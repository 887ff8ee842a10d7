# What an agent on Google Cloud needs, and nothing else: an account of its own,
# the account that MCP servers see, and the right to impersonate that, which
# nobody but the agent has. There are no keys.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

resource "google_project_service" "needed" {
  for_each           = toset(["iam.googleapis.com", "iamcredentials.googleapis.com"])
  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

# The agent: it may do nothing itself.
resource "google_service_account" "agent" {
  project      = var.project
  account_id   = "${var.name}-agent"
  display_name = "Agent of the MCP access broker"
}

# What the MCP servers see.
resource "google_service_account" "mcp" {
  for_each     = var.accounts
  project      = var.project
  account_id   = "${var.name}-${each.key}"
  display_name = "MCP servers, through the access broker (${each.key})"
}

locals {
  roles = merge([
    for account, roles in var.accounts : { for role in roles : "${account}/${role}" => { account = account, role = role } }
  ]...)
}

resource "google_project_iam_member" "mcp" {
  for_each = local.roles
  project  = var.project
  role     = each.value.role
  member   = google_service_account.mcp[each.value.account].member
}

# A binding, not a member: it takes the role from everybody else on this account.
# Who has it on the whole project, or on a folder above, still has it: give it to nobody there.
resource "google_service_account_iam_binding" "impersonate" {
  for_each           = var.accounts
  service_account_id = google_service_account.mcp[each.key].name
  role               = "roles/iam.serviceAccountTokenCreator"
  members            = [google_service_account.agent.member]
}

# On GKE the agent's Kubernetes service account acts as the agent's account.
resource "google_service_account_iam_binding" "workload_identity" {
  count              = var.kubernetes_service_account == "" ? 0 : 1
  service_account_id = google_service_account.agent.name
  role               = "roles/iam.workloadIdentityUser"
  members            = ["serviceAccount:${var.project}.svc.id.goog[${var.kubernetes_service_account}]"]
}

# On GCE the agent runs beside its servers, in the perimeter, without an address
# that anybody could dial.
resource "google_compute_instance" "agent" {
  count        = var.instance == null ? 0 : 1
  project      = var.project
  name         = "${var.name}-agent"
  zone         = var.instance.zone
  machine_type = var.instance.machine_type

  boot_disk {
    initialize_params {
      image = var.instance.image
    }
  }

  network_interface {
    subnetwork = var.instance.subnetwork
  }

  service_account {
    email  = google_service_account.agent.email
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot = true
  }
}

# Who impersonates is in Cloud Audit Logs, under iamcredentials.googleapis.com. That
# service has no switch of its own: the one of IAM is it.
resource "google_project_iam_audit_config" "iam" {
  project = var.project
  service = "iam.googleapis.com"

  dynamic "audit_log_config" {
    for_each = ["ADMIN_READ", "DATA_READ"]
    content {
      log_type = audit_log_config.value
    }
  }
}

# VPC Service Controls: data of the protected services leaves the perimeter for
# nobody but those whom an access level lets through.
resource "google_access_context_manager_access_level" "agent" {
  count  = var.access_policy == "" ? 0 : 1
  parent = "accessPolicies/${var.access_policy}"
  name   = "accessPolicies/${var.access_policy}/accessLevels/${replace(var.name, "-", "_")}_agent"
  title  = "Agent of the MCP access broker"

  basic {
    conditions {
      members = [for account in google_service_account.mcp : account.member]
    }
  }
}
