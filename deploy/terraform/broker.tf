# The broker on GCE, behind a passthrough network load balancer: TLS and QUIC reach
# it as they come, with the client's own address. Its log is on a disk that outlives
# the instance. deploy/systemd has the unit; the instance has no address of its own,
# so that reaching the identity provider takes Cloud NAT.

locals {
  broker = var.broker == null ? {} : { broker = var.broker }
  region = var.broker == null ? "" : join("-", slice(split("-", var.broker.zone), 0, 2))
}

# The broker's own account has no role: it looks up groups at most (docs/providers/google.md).
resource "google_service_account" "broker" {
  for_each     = local.broker
  project      = var.project
  account_id   = "${var.name}-broker"
  display_name = "MCP access broker"
}

resource "google_compute_disk" "broker" {
  for_each = local.broker
  project  = var.project
  name     = "${var.name}-broker-data"
  zone     = each.value.zone
  type     = "pd-balanced"
  size     = each.value.disk_gb

  lifecycle {
    prevent_destroy = true # it holds the recordings
  }
}

resource "google_compute_instance" "broker" {
  for_each     = local.broker
  project      = var.project
  name         = "${var.name}-broker"
  zone         = each.value.zone
  machine_type = each.value.machine_type
  tags         = ["${var.name}-broker"]

  boot_disk {
    initialize_params {
      image = each.value.image
    }
  }

  attached_disk {
    source      = google_compute_disk.broker[each.key].id
    device_name = "broker-data" # mount it at /var/lib/broker
  }

  network_interface {
    subnetwork = each.value.subnetwork
  }

  service_account {
    email  = google_service_account.broker[each.key].email
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
  }

  shielded_instance_config {
    enable_secure_boot = true
  }
}

resource "google_compute_instance_group" "broker" {
  for_each  = local.broker
  project   = var.project
  name      = "${var.name}-broker"
  zone      = each.value.zone
  instances = [google_compute_instance.broker[each.key].id]
}

resource "google_compute_address" "broker" {
  count   = length(local.broker)
  project = var.project
  name    = "${var.name}-broker"
  region  = local.region
}

resource "google_compute_region_health_check" "broker" {
  for_each = local.broker
  project  = var.project
  name     = "${var.name}-broker"
  region   = local.region

  https_health_check {
    port         = each.value.port
    request_path = "/healthz"
  }
}

resource "google_compute_region_backend_service" "broker" {
  for_each              = var.broker == null ? toset([]) : toset(["TCP", "UDP"])
  project               = var.project
  name                  = "${var.name}-broker-${lower(each.key)}"
  region                = local.region
  protocol              = each.key
  load_balancing_scheme = "EXTERNAL"
  health_checks         = [google_compute_region_health_check.broker["broker"].id]

  backend {
    group          = google_compute_instance_group.broker["broker"].id
    balancing_mode = "CONNECTION"
  }
}

resource "google_compute_forwarding_rule" "broker" {
  for_each              = google_compute_region_backend_service.broker
  project               = var.project
  name                  = "${var.name}-broker-${lower(each.key)}"
  region                = local.region
  load_balancing_scheme = "EXTERNAL"
  ip_protocol           = each.key
  ip_address            = google_compute_address.broker[0].id
  ports                 = [tostring(var.broker.port)]
  backend_service       = each.value.id
}

resource "google_compute_firewall" "broker" {
  for_each      = local.broker
  project       = var.project
  name          = "${var.name}-broker"
  network       = each.value.network
  source_ranges = each.value.source_ranges
  target_tags   = ["${var.name}-broker"]

  dynamic "allow" {
    for_each = ["tcp", "udp"]
    content {
      protocol = allow.value
      ports    = [tostring(each.value.port)]
    }
  }
}

# Where Google's health checks of network load balancers come from.
resource "google_compute_firewall" "broker_health" {
  for_each      = local.broker
  project       = var.project
  name          = "${var.name}-broker-health"
  network       = each.value.network
  source_ranges = ["35.191.0.0/16", "209.85.152.0/22", "209.85.204.0/22"]
  target_tags   = ["${var.name}-broker"]

  allow {
    protocol = "tcp"
    ports    = [tostring(each.value.port)]
  }
}
