//! The floor as data. A line with a longer prefix gives the word for its addresses.

/// A line of the list.
pub(crate) struct Line {
    /// A network or a name.
    pub(crate) target: &'static str,
    /// The part of the floor.
    pub(crate) word: &'static str,
    /// What is found there.
    pub(crate) comment: &'static str,
    /// Where that is written.
    pub(crate) source: &'static str,
}

const fn line(target: &'static str, word: &'static str, comment: &'static str, source: &'static str) -> Line {
    Line { target, word, comment, source }
}

const EC2: &str = "Amazon EC2 User Guide, instance metadata and link-local services";

/// Networks that no policy can permit.
#[rustfmt::skip]
pub(crate) const NETWORKS: &[Line] = &[
    line("0.0.0.0/8", "unspecified", "this host on this network; Linux connects it to loopback", "RFC 791 section 3.2, RFC 6890"),
    line("127.0.0.0/8", "loopback", "beyond the sandbox's own loopback it is the machine's", "RFC 1122 section 3.2.1.3"),
    line("169.254.0.0/16", "link_local", "link-local; cloud services of many providers", "RFC 3927"),
    line("169.254.169.254/32", "metadata", "instance metadata (AWS, Azure, Google, Oracle, DigitalOcean, OpenStack, Hetzner)", EC2),
    line("169.254.169.253/32", "metadata", "the VPC's own resolver (AWS)", EC2),
    line("169.254.169.123/32", "metadata", "time service (AWS)", EC2),
    line("169.254.170.2/32", "metadata", "task credentials (AWS ECS)", "Amazon ECS Developer Guide, task IAM role"),
    line("169.254.170.23/32", "metadata", "pod identity agent (AWS EKS)", "Amazon EKS User Guide, Pod Identity"),
    line("169.254.42.42/32", "metadata", "instance metadata (Scaleway)", "Scaleway instances documentation, metadata"),
    line("169.254.0.23/32", "metadata", "instance metadata (Tencent Cloud)", "Tencent Cloud CVM documentation, metadata"),
    line("168.63.129.16/32", "metadata", "wire server, DNS and health probes (Azure)", "Azure Virtual Network documentation, 168.63.129.16"),
    line("100.100.100.200/32", "metadata", "instance metadata (Alibaba Cloud)", "Alibaba Cloud ECS documentation, instance metadata"),
    line("192.0.0.192/32", "metadata", "instance metadata (Oracle Cloud, classic)", "Oracle Cloud Infrastructure Classic documentation"),
    line("224.0.0.0/4", "multicast", "multicast", "RFC 5771"),
    line("255.255.255.255/32", "broadcast", "limited broadcast", "RFC 919 section 7"),
    line("100.64.0.0/29", "gate", "the gate's own addresses inside each sandbox's namespace", "this product"),
    line("100.80.0.0/12", "sandbox", "the wires of sandboxes", "this product"),
    line("::/128", "unspecified", "unspecified; Linux connects it to loopback", "RFC 4291 section 2.5.2"),
    line("::1/128", "loopback", "beyond the sandbox's own loopback it is the machine's", "RFC 4291 section 2.5.3"),
    line("::ffff:0:0/96", "transition", "IPv4-mapped: judged as the IPv4 address, and never on a wire", "RFC 4291 section 2.5.5.2"),
    line("2001::/32", "transition", "Teredo: tunnels to an IPv4 address that is hidden in inverted bits", "RFC 4380 section 4"),
    line("fe80::/10", "link_local", "link-local", "RFC 4291 section 2.5.6"),
    line("ff00::/8", "multicast", "multicast", "RFC 4291 section 2.7"),
    line("fd00:ec2::254/128", "metadata", "instance metadata (AWS)", EC2),
    line("fd00:ec2::253/128", "metadata", "the VPC's own resolver (AWS)", EC2),
    line("fd00:ec2::123/128", "metadata", "time service (AWS)", EC2),
    line("fd00:ec2::23/128", "metadata", "pod identity agent (AWS EKS)", "Amazon EKS User Guide, Pod Identity"),
    line("fd20:ce::254/128", "metadata", "instance metadata (Google Cloud)", "Compute Engine documentation, metadata server"),
    line("fd00:42::42/128", "metadata", "instance metadata (Scaleway)", "Scaleway instances documentation, metadata"),
    line("fd62:6169:6c69::/64", "gate", "the gate's own addresses inside each sandbox's namespace", "this product"),
    line("fd62:6169:6c69:1::/64", "sandbox", "the wires of sandboxes", "this product"),
];

/// Names that no policy can permit. Any other name that resolves to a network above is refused by its address.
#[rustfmt::skip]
pub(crate) const NAMES: &[Line] = &[
    line("metadata.google.internal", "metadata", "instance metadata (Google Cloud)", "Compute Engine documentation, metadata server"),
    line("metadata.goog", "metadata", "instance metadata (Google Cloud)", "Compute Engine documentation, metadata server"),
    line("metadata", "metadata", "instance metadata by search domain (Google Cloud)", "Compute Engine documentation, metadata server"),
    line("instance-data", "metadata", "instance metadata by search domain (AWS)", EC2),
    line("instance-data.ec2.internal", "metadata", "instance metadata (AWS)", EC2),
    line("metadata.tencentyun.com", "metadata", "instance metadata (Tencent Cloud)", "Tencent Cloud CVM documentation, metadata"),
];
