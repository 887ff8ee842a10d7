package identity

var ReadIdentity = readIdentity
