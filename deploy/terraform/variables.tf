variable "project" {
  description = "The project's id."
  type        = string
}

variable "name" {
  description = "What the names of the accounts begin with."
  type        = string
  default     = "mcp"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,15}$", var.name))
    error_message = "name must be 2 to 16 lower-case letters, digits and dashes."
  }
}

variable "accounts" {
  description = "The accounts that servers see, and their roles: one for each set of rights that a rule of the policy gives."
  type        = map(set(string))
  default = {
    read  = ["roles/mcp.toolUser", "roles/bigquery.dataViewer", "roles/bigquery.jobUser"]
    write = ["roles/mcp.toolUser", "roles/bigquery.dataEditor", "roles/bigquery.jobUser"]
  }
}

variable "kubernetes_service_account" {
  description = "namespace/name of the agent's Kubernetes service account; empty: the agent does not run on GKE."
  type        = string
  default     = ""
}

variable "instance" {
  description = "The instance that the agent runs on; null: it does not run on GCE."
  type = object({
    zone         = string
    subnetwork   = string
    machine_type = optional(string, "e2-small")
    image        = optional(string, "debian-cloud/debian-12")
  })
  default = null
}

variable "access_policy" {
  description = "The number of the organisation's access policy; empty: no access level is made."
  type        = string
  default     = ""
}

variable "broker" {
  description = "The instance that the broker runs on, and its load balancer; null: the broker runs elsewhere, such as on GKE with the Helm chart."
  type = object({
    zone          = string
    network       = string
    subnetwork    = string
    machine_type  = optional(string, "e2-standard-2")
    image         = optional(string, "debian-cloud/debian-12")
    disk_gb       = optional(number, 50)
    port          = optional(number, 8443)
    source_ranges = optional(list(string), ["0.0.0.0/0"])
  })
  default = null
}
