package Collector::Reply;

# Sends an answer, the ordinary way or with the faults that concern the connection: late, slowly, in part or not at all.
# A reply is a hash: status, headers, type, body, and instead of a body possibly huge, the length of a made-up one.

use strict;
use warnings;
use feature 'current_sub';

use Exporter 'import';
use Encode ();
use Collector::Json qw(is_string);
use Mojo::IOLoop;
use Mojo::Util ();
use Mojo::Message::Response;
use Socket qw(SOL_SOCKET SO_LINGER);

our @EXPORT_OK = qw(send_reply);

use constant PIECE => 65_536;

my $HUGE_HEAD = '{"experiments":[],"filler":"';
my $HUGE_TAIL = '"}';
my $GARBAGE   = "\x00\x16\x03\xffthis is not HTTP\xfe\r\n\r\n\x01\x02";

# $end->(state, status) ends the request's record, $is_pending->() tells whether the client still waits.
sub send_reply {
    my ($c, $reply, $fault, $end, $is_pending) = @_;

    $fault ||= {};
    my $tx   = $c->tx;
    my $send = sub {
        return unless $is_pending->();
        return if $fault->{hang};
        my $raw = $reply->{huge} || $fault->{chunked} || grep { defined $fault->{$_} } qw(cut_after drip reset garbage);
        return _send_plain($c, $reply, $end) unless $raw;

        my $stream = Mojo::IOLoop->stream($tx->connection) or return;
        if ($fault->{garbage}) {
            $end->('aborted', undef);
            my $bytes = is_string($fault->{garbage}) ? Encode::encode('UTF-8', $fault->{garbage}) : $GARBAGE;
            $stream->write($bytes => sub { $_[0]->close });
        }
        elsif ($fault->{reset} && !defined $fault->{cut_after}) {
            $end->('aborted', undef);
            _reset($stream);
        }
        else { _send_raw($stream, $reply, $fault, $end, $is_pending) }
    };

    # Never from inside the daemon's handler: it still uses the connection when the handler returns.
    # A delay counts from the request, or from when a promise is kept, where programs that are built on this give one.
    my $delay = $fault->{delay_ms};
    my $late  = sub { Mojo::IOLoop->timer($delay / 1000 => $send) };
    if    ($delay && $fault->{delay_from}) { $fault->{delay_from}->then($late) }
    elsif ($delay)  { $late->() }
    elsif (%$fault) { Mojo::IOLoop->next_tick($send) }
    else            { $send->() }
}

sub _send_plain {
    my ($c, $reply, $end) = @_;
    my $headers = $c->res->headers;
    $headers->content_type($reply->{type}) if length $reply->{body};
    $headers->header($_ => $reply->{headers}{$_}) for sort keys %{$reply->{headers}};
    $c->res->body($reply->{body});
    $end->('answered', $reply->{status});
    $c->rendered($reply->{status});
}

# Writes head and body to the socket by hand, then closes the connection.
sub _send_raw {
    my ($stream, $reply, $fault, $end, $is_pending) = @_;

    my ($length, $read) = _source($reply);
    my $chunked  = $fault->{chunked};
    my $status   = $reply->{status};
    my $message  = Mojo::Message::Response->new->default_message($status) || 'Unknown';
    my %headers  = ('Content-Type' => $reply->{type}, Connection => 'close', %{$reply->{headers}});
    if ($chunked) { $headers{'Transfer-Encoding'} = 'chunked' }
    else          { $headers{'Content-Length'} //= $length }
    $stream->write("HTTP/1.1 $status $message\r\n" . join('', map {"$_: $headers{$_}\r\n"} sort keys %headers) . "\r\n");

    my $limit = defined $fault->{cut_after} && $fault->{cut_after} < $length ? $fault->{cut_after} : $length;
    my $piece = PIECE;
    my $pause;
    if (my $rate = $fault->{drip}) {
        $piece = int($rate / 10) || 1;
        $pause = $piece / $rate;
    }

    my $position = 0;
    my $step     = sub {
        return unless $is_pending->();
        my $next  = __SUB__;
        my $size  = $limit - $position < $piece ? $limit - $position : $piece;
        my $bytes = $size ? $read->($position, $size) : '';
        $position += $size;
        $bytes = sprintf("%x\r\n", $size) . "$bytes\r\n" if $chunked && $size;

        if ($position >= $limit) {
            my $complete = $limit == $length;
            $bytes .= "0\r\n\r\n" if $chunked && $complete;
            $end->($complete ? 'answered' : 'aborted', $status);
            return $stream->write($bytes => sub { $fault->{reset} ? _reset($_[0]) : $_[0]->close });
        }
        $stream->write($bytes => sub { $pause ? Mojo::IOLoop->timer($pause => $next) : Mojo::IOLoop->next_tick($next) });
    };
    $step->();
}

# The length of the body and a function that returns a part of it. A huge body is made as it is sent.
sub _source {
    my ($reply) = @_;
    my $body = $reply->{body};
    return (length $body, sub { substr $body, $_[0], $_[1] }) unless $reply->{huge};

    my $least  = length "$HUGE_HEAD$HUGE_TAIL";
    my $length = $reply->{huge} < $least ? $least : $reply->{huge};
    my $tail   = $length - length $HUGE_TAIL;
    return (
        $length,
        sub {
            my ($position, $size) = @_;
            my $bytes = $position < length $HUGE_HEAD ? substr $HUGE_HEAD, $position, $size : '';
            my $to    = $position + $size < $tail     ? $position + $size : $tail;
            my $fill  = $to - $position - length $bytes;
            $bytes .= 'x' x $fill if $fill > 0;
            my $start = $position > $tail ? $position - $tail : 0;
            $bytes .= substr $HUGE_TAIL, $start, $size - length $bytes if length $bytes < $size;
            return $bytes;
        }
    );
}

# Closes with a TCP reset instead of an orderly end.
sub _reset {
    my ($stream) = @_;
    setsockopt $stream->handle, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0) if $stream->handle;
    $stream->close;
}

1;
