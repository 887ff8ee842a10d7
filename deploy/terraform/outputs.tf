output "agent_account" {
  description = "For agents.gcp.service_accounts in broker.yaml."
  value       = google_service_account.agent.email
}

output "mcp_accounts" {
  description = "For credential.gcp.impersonate in agent.yaml, by name."
  value       = { for name, account in google_service_account.mcp : name => account.email }
}

output "broker_address" {
  description = "For the DNS names of the broker: its own, and *. beneath it."
  value       = one(google_compute_address.broker[*].address)
}
