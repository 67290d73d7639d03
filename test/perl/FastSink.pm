package FastSink;

# A collector that takes publish requests as fast as they come, over real HTTP, and only counts them: for tests where the
# development collector, which looks at each event, would be the slowest part.
#
#   my $sink = FastSink->start(data => experiments(...));
#   $sink->url('/v1');          # for absmartly.endpoint
#   $sink->count;               # { contexts, exposures, goals, requests, refused, largest, seconds, digest } since forget()
#   $sink->answer(500);         # from now on; 200: takes them again
#   $sink->close, $sink->open;  # connections are refused meanwhile
#
# seconds passed from the first request to the last one.  The digest is that of the units, in any order: digest_of().
# What it counted is also to be had at GET /_/count.

use strict;
use warnings;

use Digest::MD5 qw(md5_base64);
use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use POSIX ();
use Socket;
use Time::HiRes qw(time);

my $CHUNK = 1024 * 1024;
my $NO_DIGEST = "\0" x 22;

sub start
{
	my ($class, %options) = @_;
	my $listener = listen_at(0);
	my $port = $listener->sockport;

	socketpair(my $ours, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
	$ours->autoflush(1);
	my $pid = fork // die "fork: $!";
	if ($pid == 0)
	{
		CORE::close($ours);
		eval { serve($listener, $its, $options{data}); 1 } or print STDERR $@;
		# nothing of what the parent does at its end
		POSIX::_exit(0);
	}
	return bless { port => $port, pid => $pid, control => $ours }, $class;
}

sub url
{
	my ($self, $space) = @_;

	return "http://127.0.0.1:$self->{port}" . ($space // '/v1');
}

sub count { return JSON::PP::decode_json(tell_sink($_[0], 'count')) }
sub forget { return tell_sink($_[0], 'forget') }
sub answer { return tell_sink($_[0], "answer $_[1]") }
sub close { return tell_sink($_[0], 'close') }
sub open { return tell_sink($_[0], 'open') }

# What count() gives as the digest of contexts that have one of these uids each.
sub digest_of
{
	my $digest = $NO_DIGEST;

	for my $uid (@_)
	{
		my $hash = md5_base64($uid);
		$hash =~ tr{+/}{-_};
		$digest ^= $hash;
	}
	return unpack('H*', $digest);
}

# The process ends when its control connection does.
sub DESTROY
{
	my ($self) = @_;

	local ($?, $!);
	CORE::close($self->{control});
	waitpid $self->{pid}, 0;
	return;
}

sub tell_sink
{
	my ($self, $command) = @_;

	print { $self->{control} } "$command\n" or die "the sink is gone: $!";
	my $answer = readline $self->{control};
	die "the sink is gone" if !defined $answer;
	chomp $answer;
	return $answer;
}

#
# The process of the sink
#

sub listen_at
{
	my ($port) = @_;

	return IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 64, ReuseAddr => 1)
		// die "cannot listen: $@";
}

sub nothing_counted
{
	return (contexts => 0, exposures => 0, goals => 0, requests => 0, refused => 0, largest => 0, first => 0, last => 0,
		digest => $NO_DIGEST);
}

sub counted
{
	my ($count) = @_;
	my %told = (%$count, digest => unpack('H*', $count->{digest}), seconds => $count->{last} - $count->{first});

	delete @told{qw(first last)};
	return JSON::PP->new->canonical->encode(\%told);
}

# Counts what a request with events has.  One that is refused has left nothing.
sub take
{
	my ($count, $body, $status) = @_;

	if ($status != 200)
	{
		$count->{refused}++;
		return;
	}
	my $contexts = () = $$body =~ /"publishedAt":/g;
	$count->{requests}++;
	$count->{contexts} += $contexts;
	$count->{largest} = $contexts if $contexts > $count->{largest};
	$count->{exposures} += () = $$body =~ /"exposedAt":/g;
	$count->{goals} += () = $$body =~ /"achievedAt":/g;
	$count->{digest} ^= $_ for $$body =~ /"uid":"([\w-]{22})"/g;
	$count->{last} = time;
	$count->{first} ||= $count->{last};
	return;
}

sub respond
{
	my ($socket, $status, $body) = @_;
	my $response = "HTTP/1.1 $status Status\r\nContent-Type: application/json\r\nContent-Length: " . length($body) . "\r\n\r\n$body";

	while (length $response)
	{
		my $written = syswrite $socket, $response;
		return 0 if !defined $written;
		substr($response, 0, $written, '');
	}
	return 1;
}

# Answers the requests that are complete in a connection's buffer; false if the connection is of no use any more.
sub answer_complete
{
	my ($socket, $connection, $state) = @_;

	while (1)
	{
		if (!$connection->{method})
		{
			my $end = index $connection->{buffer}, "\r\n\r\n";
			return 1 if $end < 0;
			my $head = substr $connection->{buffer}, 0, $end + 4, '';
			@$connection{ 'method', 'path' } = $head =~ m{^([A-Z]+) (\S+) HTTP/1} or return 0;
			$connection->{length} = $head =~ /^Content-Length: *(\d+)/mi ? $1 : 0;
		}
		return 1 if length $connection->{buffer} < $connection->{length};

		my $body = substr $connection->{buffer}, 0, $connection->{length}, '';
		my $status = $state->{status};
		my $answer = $status == 200 ? '{"ok":true}' : '{"ok":false}';
		if ($connection->{method} eq 'PUT')
		{
			take($state->{count}, \$body, $status);
		}
		elsif ($connection->{path} eq '/_/count')
		{
			($status, $answer) = (200, counted($state->{count}));
		}
		elsif ($status == 200)
		{
			$answer = $state->{data};
		}
		$connection->{method} = undef;
		respond($socket, $status, $answer) or return 0;
	}
}

# Does what the test says; false when that has ended.
sub obey
{
	my ($control, $state) = @_;
	my $command = readline $control;
	my $answer = 'ok';

	return 0 if !defined $command;
	chomp $command;
	if ($command eq 'count')
	{
		$answer = counted($state->{count});
	}
	elsif ($command eq 'forget')
	{
		%{ $state->{count} } = nothing_counted();
	}
	elsif ($command =~ /^answer (\d+)$/)
	{
		$state->{status} = $1;
	}
	elsif ($command eq 'close')
	{
		for my $socket ($state->{listener}, map { $_->{socket} } values %{ $state->{connections} })
		{
			$state->{select}->remove($socket);
			CORE::close($socket);
		}
		%{ $state->{connections} } = ();
	}
	elsif ($command eq 'open')
	{
		$state->{listener} = listen_at($state->{port});
		$state->{select}->add($state->{listener});
	}
	print {$control} "$answer\n";
	return 1;
}

sub serve
{
	my ($listener, $control, $data) = @_;
	my %state = (
		listener => $listener, port => $listener->sockport, status => 200, count => { nothing_counted() },
		connections => {}, select => IO::Select->new($listener, $control), data => $data // '{"experiments":[]}');

	local $SIG{PIPE} = 'IGNORE';
	$control->autoflush(1);
	while (1)
	{
		my @ready = $state{select}->can_read;

		# those that are connected first: a command may close them
		for my $socket (grep { $_ != $control } @ready)
		{
			if ($socket == $state{listener})
			{
				my $new = $socket->accept or next;
				$state{connections}{ fileno $new } = { socket => $new, buffer => '' };
				$state{select}->add($new);
				next;
			}
			my $connection = $state{connections}{ fileno $socket };
			my $got = sysread $socket, $connection->{buffer}, $CHUNK, length $connection->{buffer};
			next if $got && answer_complete($socket, $connection, \%state);
			$state{select}->remove($socket);
			delete $state{connections}{ fileno $socket };
			CORE::close($socket);
		}
		next if !grep { $_ == $control } @ready;
		last if !obey($control, \%state);
	}
	return;
}

1;
